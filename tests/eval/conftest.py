import pytest
from PIL import Image

from data.records import write_studies


@pytest.fixture
def make_file(tmp_path):
    """Write studies with one small film each; returns the path of the JSONL."""

    def write(studies, name="studies.jsonl"):
        (tmp_path / "films").mkdir(exist_ok=True)
        for number, one in enumerate(studies):
            for image in one["images"]:
                Image.new("L", (32, 32), number % 256).save(tmp_path / image)
        write_studies(tmp_path / name, studies)
        return tmp_path / name

    return write
