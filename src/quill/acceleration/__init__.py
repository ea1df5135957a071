"""What makes training faster or smaller without changing a result, applied to a finished model from outside."""
