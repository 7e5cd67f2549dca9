"""What has to do with files and not with checkpoints: small texts."""
