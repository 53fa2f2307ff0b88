"""What a pass or a step would cost on hardware that is not here."""
