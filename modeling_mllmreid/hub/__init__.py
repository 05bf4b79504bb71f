"""What is published: exports of a model, their ONNX file and card, and the way to the Hub."""
