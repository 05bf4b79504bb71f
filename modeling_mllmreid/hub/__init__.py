"""Publishing a model: export, ONNX file, model card and push to the Hub."""
