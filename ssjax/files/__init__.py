"""Reading what users give and writing what they keep."""
