"""One YAML file a study; its keys are the fields of `sweeps.study.StudyConfig`."""
