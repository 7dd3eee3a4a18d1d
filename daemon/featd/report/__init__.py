"""What people are told about an instance and its images: one report, which `featd status` and the page show."""
