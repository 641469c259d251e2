"""The target `sensor-board`: the path of its file."""

from pathlib import Path

BOARD = Path(__file__).with_name("sensor_board.yaml")
