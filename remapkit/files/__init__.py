"""Files, whatever they hold: held open, copied, written atomically; strict JSON and small texts."""
