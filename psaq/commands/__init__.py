"""The commands. Each file here says what its command asks: a frozen dataclass that imports nothing heavy, so that help
is quick. What the command then does is in the file of the same name in `psaq.commands.work`, loaded when it runs."""
