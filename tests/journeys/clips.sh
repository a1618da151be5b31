# Trains on your own captioned clips, and generates from them.

# Your folder: clip.mp4 beside clip.txt, or a list of files and captions. See docs/vision.md.
lwm tokenize lwm/assets/clips --vqgan vqgan-64 --max-frames 4 --out clips
lwm data show clips --out clips.html

# Here four updates; the whole recipe takes 1,500, twenty minutes on two cores.
# `--data.add FILES weight=2` adds more sets beside these.
lwm train tiny-vision --data.sets.0.files clips --data.sets.1.files clips \
    --data.held-out.0.files clips --data.held-out.1.files clips \
    --training.steps 4 --training.optimizer.schedule.warmup 1 --out runs/clips

# Captions to clips and back, for some of them.
lwm eval vision runs/clips/model clips --count 2 --out eval/clips
lwm generate video runs/clips/model "octopus" --frames 4 -o octopus.gif
