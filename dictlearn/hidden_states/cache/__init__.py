"""Hidden states on disk: written once, read in any order by any number of runs.

    FOLDER/
      manifest.json            what it is a cache of; name, size and digest of every other file;
                               written last, so a cache without it is not finished
      train-00000.safetensors  shards: some hundred thousand vectors of training text each
      validation-00000.safetensors  the same of held-out text
      statistics.safetensors   sums over all training vectors, from which means and scales follow
      text/                    the tokens of all documents, and the text of every token id

Nothing in it is ever run: tensors are safetensors, the rest is JSON and plain arrays. The text of
the tokens is in it, so that contexts can be shown without tokenizer and text.
"""
