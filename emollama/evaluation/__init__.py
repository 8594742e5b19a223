"""What is written about answers: plain functions over plain lists, without torch."""
