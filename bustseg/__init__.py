"""bustseg: breast-tumour segmentation in ultrasound with PyTorch Lightning and MLflow."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # `from bustseg import Predictor` brings what a prediction needs, `import bustseg` nothing
    if name == "Predictor":
        from bustseg.deploy.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
