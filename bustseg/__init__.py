"""bustseg: breast-tumour segmentation in ultrasound with PyTorch Lightning and MLflow."""

__version__ = "0.1.0"
