"""Other forms of a model folder: ONNX and OpenVINO, fp32 and int8, made, compared and run by their own libraries."""
