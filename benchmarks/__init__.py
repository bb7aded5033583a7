"""What ftcli costs beside what it stands on, measured in turn in one run."""
