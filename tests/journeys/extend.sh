# Extends a base model to a longer context, with adapters, and measures what it gained.

# What a context of 32K needs here, before anything is fetched or trained.
lwm plan smollm2-135m-instruct --context 32768

# Books in which numbers are stated twice: the far context pays. Your own: any text files.
# Here three updates of 512 tokens; a real run takes thousands, at the whole context.
lwm train debug --init smollm2-135m-instruct --context 32768 --stretch ntk \
    --lora.rank 8 --data.sets.0.files recalls:train,count=50,characters=4000 --data.sets.0.name books \
    --data.packing.length 512 --data.rows 1 --data.held-out-rows 1 \
    --training.steps 3 --training.optimizer.schedule.warmup 1 \
    --training.optimizer.schedule.peak 1e-4 --out runs/longer

# Loss by position over steps, and over tokens.
lwm plot runs/longer --over tokens --out longer.svg

# The same targets with more and with less context before them.
lwm eval perplexity runs/longer/model --length 512 --segments 1 --out eval/longer

lwm chat runs/longer/model "What is the capital of France?" --max-tokens 12
