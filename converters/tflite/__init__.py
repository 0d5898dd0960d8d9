"""The TFLite back end: bundles for LiteRT."""
