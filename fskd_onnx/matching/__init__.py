"""Which block and which channels of the teacher a student's are."""
