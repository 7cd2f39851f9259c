"""Token shards to input ids: windows, layouts, and the sampling order."""
