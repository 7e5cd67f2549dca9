"""Files of any content: kept open for reading, copied, written atomically; strict JSON and small texts."""
