# Uses weights in LWM's own format: a folder with params, tokenizer and VQGAN.

# All eleven released models are known by name; `lwm plan` says which machine holds one.
lwm models
lwm plan LWM-Chat-1M-Jax --context 131072 --mesh 1,1,8,1 --dtype bfloat16 --memory 32

# The released weights have 13 GB. A small model of the same shape and format stands for them here.
lwm train tiny-vision --model.num-kv-heads 8 --training.steps 2 \
    --training.optimizer.schedule.warmup 1 --out runs/small
lwm convert runs/small weights --to lwm-original

lwm chat weights "What is shown in this video?" --video lwm/assets/clips/1f419.webp \
    --max-frames 2 --max-tokens 8
lwm generate image weights "octopus" "tiger" -o drawn.png
lwm generate video weights "tiger" --frames 4 -o drawn.webp

# For other programs: transformers and vLLM read the folder, llama.cpp the file.
lwm convert weights folder
lwm convert weights model.gguf --to gguf --dtype int8
