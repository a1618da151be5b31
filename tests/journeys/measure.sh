# Measures how much of its context a model uses, and compares two.

# Needles, RULER and perplexity in one report. Here one part at one length; leave these options
# out, or give --quick, for the whole suite. It can be stopped and continued.
lwm eval all smollm2-135m-instruct --parts needle --lengths 512 --samples 1 --depths 0 100 --out eval/a
lwm eval all smollm2-135m-instruct --parts needle --lengths 512 --samples 1 --depths 0 100 --dtype int8 --out eval/b

# Which of the two is better, and whether that may be chance.
lwm eval compare eval/a eval/b

# A server that speaks OpenAI's API is measured in the same way:
#   lwm eval all NAME --endpoint http://127.0.0.1:8000/v1 --tokenizer smollm2-135m-instruct
ls eval/a/report.html
