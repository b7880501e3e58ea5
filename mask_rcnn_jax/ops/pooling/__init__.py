"""Values of feature maps in RoIs and at points."""
