"""Update rules and what is measured along them, one idea a file."""
