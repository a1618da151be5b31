# Publishes a model: a folder with weights, tokenizer and model card, and a file for llama.cpp.

# Here a run of twenty steps on one's own text.
lwm train debug --training.steps 20 --data.sets.0.files lwm/assets/moby-dick/chapter-1.txt \
    --out runs/own

# A report of lwm eval beside the run is put into the model card.
lwm convert runs/own folder --dtype bfloat16
head -20 folder/README.md
lwm convert runs/own own.gguf --to gguf --dtype int8

# Anybody can use both, here or elsewhere. `hf upload NAME folder` puts the folder on the hub.
lwm generate text ./folder "Call me" --max-tokens 8
lwm generate text ./own.gguf "Call me" --max-tokens 8
