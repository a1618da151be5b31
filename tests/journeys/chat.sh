# Chats: a question, a document, pictures, and Python. Without a question it is interactive.

lwm chat smollm2-135m-instruct "What is the capital of France?" --max-tokens 12

# About a text, HTML, PDF or folder, or what another program writes.
lwm chat smollm2-135m-instruct --document lwm/assets/moby-dick/chapter-1.txt \
    "Who is speaking?" --max-tokens 24
head -c 900 lwm/assets/moby-dick/chapter-2.txt |
    lwm chat smollm2-135m-instruct "Summarise this in a sentence." --max-tokens 24

# About an image, and with images in the answer.
lwm chat tiny-vision --image lwm/assets/clips/1f419.webp "What is shown in this image?"
lwm chat tiny-vision --out drawn "Generate an image of octopus"

python -c '
import lwm

model = lwm.load("smollm2-135m-instruct")
print(model.chat([{"role": "user", "content": "What is 2 plus 2?"}], max_tokens=12))
'
