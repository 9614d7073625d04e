"""Language models, an application of the layers: ``fastrnn train`` and ``fastrnn sample``."""
