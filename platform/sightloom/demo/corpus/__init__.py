"""A deterministic, procedural corpus of the five domains, with planted defects and known ground truth."""

from sightloom.demo.corpus.painters import sample
from sightloom.demo.corpus.sample import Question, Sample
from sightloom.demo.corpus.writer import CorpusInfo, read_info, write_corpus

__all__ = ["CorpusInfo", "Question", "Sample", "read_info", "sample", "write_corpus"]
