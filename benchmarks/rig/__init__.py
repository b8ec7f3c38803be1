"""What benchmarks measure with and against: loads, simulated APIs, other servers, students."""
