"""From a config to the objects it describes: the only room below the jobs that sees configs."""
