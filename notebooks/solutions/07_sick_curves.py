"""Lesson 7: the illness of each run, by its number in the list."""

illness = {
    "A": 4,  # training and validation fall together, far below all others
    "B": 2,  # smooth, and slow
    "C": 1,  # stuck at the frequencies, and trembling
    "D": 3,  # training falls, validation turns and rises
}
