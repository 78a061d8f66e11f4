"""Train a dictionary of transformer factors: ``python train.py [group=option key=value ...]``."""

from dictlearn.cli import train

if __name__ == "__main__":
    train()
