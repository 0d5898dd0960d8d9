"""The TFLite back end for tflite-runtime 2.14: old images and armv7 boards."""
