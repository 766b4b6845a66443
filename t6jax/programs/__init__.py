"""What train.py, eval.py and generate.py call: values of flags in, an exit code out."""
