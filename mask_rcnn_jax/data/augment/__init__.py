"""From a record to the sample that is trained on."""
