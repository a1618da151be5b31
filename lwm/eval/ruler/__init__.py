"""RULER: thirteen tasks of retrieval, tracing, aggregation and questions at any context length.

C.-P. Hsieh et al., RULER: What's the Real Context Size of Your Long-Context Language Models?,
arXiv 2404.06654. Wording, numbers of needles, frequencies, room for answers and scoring are as
published. Prompts are generated here, without any download, and differ in these points:

- The essays are local text, by default the book in the package, instead of Paul Graham's; it is
  repeated where it is short, as upstream. Needles stand between its sentences by our own rule.
- Words are those of the package wonderwords, as upstream. The list of common and frequent words
  ends after 8,166; pairs of an adjective and a noun follow, instead of a second list.
- The documents of `qa_1` and `qa_2` are a generated encyclopedia. With files of SQuAD and HotpotQA
  they are as upstream; where ten documents do not fit, those that answer are kept.
- A sample depends on its task, length, number and seed alone, and each prompt has as much text as
  fits. Keys and values are distinct, so that each question has one answer.
- Examples are part of the user's message, without a chat template of their own.

The chance of every task is 0: answers are open.
"""
