"""From films and teachers' trajectories to checked rows that ms-swift can train on."""
