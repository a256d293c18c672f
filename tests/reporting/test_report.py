import re

import pytest

from realm.core.files import ArtefactError, write_json
from realm.core.metrics import PUBLISHED, Metrics, number
from realm.evaluation.claims import judge_all, load_claims
from realm.reporting import reference, report

STAGES = [
    {"number": "01", "notebook": "01_data_inspection", "folder": "01_data", "seconds": 60.0},
    {"number": "05", "notebook": "05_mt_bench", "folder": "05_mt_bench", "seconds": 120.0},
]


PUBLISHED_FILES = {"01_funnel.png", "01_funnel.csv", "01_funnel.json", "01_other.png", "01_other.csv"}


@pytest.fixture
def run_folder(tmp_path):
    """A finished run of two stages: one number of ours with an interval, one published, one hostile name."""
    folder = tmp_path / "runs" / "cpu"
    ours, published = Metrics(), Metrics()
    ours.add("conversations_read", 17_671, unit="conversations")
    ours.add("user_turn_perplexity_after", 19.4, ci=(17.5, 21.25), n=40, unit="perplexity")
    ours.add("<script>alert(1)</script>", 1, unit="<b>")
    published.add("mt_bench_published_overall", 6.328125, n=160, unit="score", source=PUBLISHED)
    for stage, metrics in zip(STAGES, (ours, published), strict=True):
        metrics.save(folder / stage["folder"])
        manifest = {"commit": "0123456789abcdef", "seed": 7, "device": "CPU, 2 cores"}
        write_json(folder / stage["folder"] / "manifest.json", manifest)
    (folder / "figures").mkdir()
    (folder / "figures" / "01_funnel.png").write_bytes(b"\x89PNG")
    (folder / "figures" / "01_funnel.csv").write_text("step\n")
    (folder / "figures" / "01_funnel.json").write_text('{"alt": "Cleaning, step by <step>"}')
    (folder / "figures" / "01_other.png").write_bytes(b"\x89PNG2")
    (folder / "figures" / "01_other.csv").write_text("step\n")
    return folder


@pytest.fixture
def repository(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "REPOSITORY", tmp_path)
    monkeypatch.setattr(reference, "REFERENCE_METRICS", tmp_path / "figures" / "reference_metrics.json")
    (tmp_path / "README.md").write_text(f"# Title\n{report.README_BEGIN}\nold\n{report.README_END}\nafter\n")
    return tmp_path


def test_the_page_shows_stages_numbers_and_figures(run_folder):
    page = report.write_report(run_folder, "smoke", STAGES).read_text()
    for words in ("01_data_inspection", "17,671", "19.4", "17.5 to 21.25", "6.328", "0123456789ab", "seed 7"):
        assert words in page
    assert "data:image/png;base64,iVBORw==" in page
    assert page.count('<tr class="published"') == 1


def test_the_page_leads_with_ledger_and_figures_and_folds_the_rest(run_folder):
    page = report.write_report(run_folder, "smoke", STAGES).read_text()
    places = [page.index(words) for words in ('id="ledger"', 'id="figures"', 'id="01_funnel"', 'id="all"', "<details>")]
    assert places == sorted(places)
    assert page.index('id="01_other"') > places[-1] and page.count("<img") == 2
    gap = judge_all(load_claims(), {m.name: m for m in Metrics.load(run_folder / "01_data")})
    assert page.count('<td class="verdict"') == len(gap)
    assert "read from the published numbers" in page and "untested" in page


def test_metrics_have_words_and_their_names(run_folder):
    page = report.write_report(run_folder, "smoke", STAGES).read_text()
    assert "perplexity of held-out human turns, UserGPT<br><code" in page
    assert ">user_turn_perplexity_after</code>" in page


def test_a_caption_names_notebook_commit_and_numbers(run_folder):
    page = report.write_report(run_folder, "smoke", STAGES).read_text()
    caption = page.split('id="01_funnel"')[1].split("</figure>")[0]
    assert 'href="notebooks/01_data_inspection.html"' in caption and "0123456789ab" in caption
    assert 'href="figures/01_funnel.csv"' in caption and "stale" not in caption
    assert 'alt="Cleaning, step by &lt;step&gt;"' in caption
    assert 'alt="other"' in page  # one without a note


def test_the_page_needs_nothing_from_elsewhere_and_fits_a_phone(run_folder):
    page = report.write_report(run_folder, "smoke", STAGES).read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#|notebooks/|figures/)[^"]*"', page) == []
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert '<meta name="viewport" content="width=device-width' in page and "@media (max-width" in page
    assert page.count("<img") == page.count('<img alt="') == 2 and 'alt=""' not in page


def test_a_stale_stage_and_its_figures_are_marked(run_folder):
    stale = [{**STAGES[0], "stale": ["code 01_data_inspection.ipynb"]}, STAGES[1]]
    page = report.write_report(run_folder, "smoke", stale).read_text()
    assert "These numbers are from before something changed: code 01_data_inspection.ipynb" in page
    assert "stale" in page.split('id="01_funnel"')[1].split("</figure>")[0]
    assert page.index("Stages marked stale") < page.index('id="ledger"')


def test_the_page_is_escaped(run_folder):
    page = report.write_report(run_folder, "<script>", STAGES).read_text()
    assert "<script" not in page and "<b>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_stage_that_did_not_run_is_left_out(run_folder):
    more = [*STAGES, {"number": "06", "notebook": "06_x", "folder": "06_x", "seconds": 1}]
    assert "06_x" not in report.write_report(run_folder, "smoke", more).read_text()


def test_publish_copies_figures_and_renders_the_table(run_folder, repository):
    report.publish(run_folder, STAGES)
    copied = {p.name for p in (repository / "figures").iterdir()}
    assert copied == {*PUBLISHED_FILES, "reference_metrics.json"}
    readme = (repository / "README.md").read_text()
    assert readme.startswith("# Title\n") and readme.endswith("\nafter\n") and "\nold\n" not in readme
    assert f"{report.README_BEGIN}\n{report.readme_block()}\n{report.README_END}" in readme
    assert "| perplexity of held-out human turns, UserGPT |  | 19.4 [17.5 to 21.25] | 40 |" in readme
    assert "| MT-Bench of ReaLM-7B, GPT-4 judge | 6.328 |  | 160 |" in readme
    assert "3 minutes on CPU, 2 cores" in readme


def test_rendering_twice_changes_nothing(run_folder, repository):
    report.publish(run_folder, STAGES)
    first = (repository / "README.md").read_text()
    report.write_readme_block(repository / "README.md")
    assert (repository / "README.md").read_text() == first


def test_a_run_of_the_longer_profile_has_a_folder_and_a_table_of_its_own(run_folder, repository):
    report.publish(run_folder, STAGES)
    first = (repository / "figures" / "reference_metrics.json").read_text()
    longer = run_folder.rename(run_folder.with_name("cpu-long"))
    report.publish(longer, STAGES[:1])  # stage 05 was not run
    there = {p.name for p in (repository / "figures" / "cpu-long").iterdir()}
    assert there == {*PUBLISHED_FILES, "reference_metrics.json"}
    assert (repository / "figures" / "reference_metrics.json").read_text() == first
    block = report.readme_block()
    assert block.index("profile `cpu` |") < block.index("profile `cpu-long` |") < block.index("| (e) UserGPT |  | 19.4")


def test_figures_of_stages_that_are_not_published_stay_behind(run_folder, repository):
    (run_folder / "figures" / "03_realchat.png").write_bytes(b"old")
    report.publish(run_folder, STAGES)
    assert not (repository / "figures" / "03_realchat.png").exists()


def test_a_figure_that_is_no_longer_drawn_goes_with_its_numbers(run_folder, repository):
    """Else it would stand beside metrics of another run."""
    (repository / "figures" / "cpu-long").mkdir(parents=True)
    for name in ("01_old.png", "01_old.csv", "06_kept.png", "cpu-long/01_kept.png"):
        (repository / "figures" / name).write_bytes(b"old")
    report.publish(run_folder, STAGES)
    names = {p.name for p in (repository / "figures").rglob("*") if p.is_file()}
    assert names == {*PUBLISHED_FILES, "06_kept.png", "01_kept.png", "reference_metrics.json"}


def test_a_readme_without_markers_is_refused(run_folder, repository):
    (repository / "README.md").write_text("# Title\n")
    with pytest.raises(ArtefactError, match=r"markers .* are missing"):
        report.write_readme_block(repository / "README.md")


def test_numbers_are_written_for_readers():
    assert number(17_671) == "17,671"
    assert number(19.43219) == "19.43"
