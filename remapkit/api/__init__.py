"""The public faces: `RuleSet` and `Plan` hold the data of the lower floors and delegate to them."""
