"""Whether influence can be believed: how its figures agree with what they approximate and with what they predict."""
