"""What train.py, eval.py and generate.py call: flags' values in, an exit code out."""
