"""Logs as Caffe's versions, its forks and terminals leave them -> the numbers in them."""

import math

import pytest

from ops.training import log_reader

OLD = """\
I0717 21:06:03.349702  9965 caffe.cpp:251] Starting Optimization
I0717 21:06:03.500000  9965 solver.cpp:279] Solving LeNet
I0717 21:06:03.500009  9965 solver.cpp:280] Learning Rate Policy: inv
I0717 21:06:03.500009  9965 solver.cpp:337] Iteration 0, Testing net (#0)
I0717 21:06:05.472965  9965 solver.cpp:404]     Test net output #0: accuracy = 0.1296
I0717 21:06:05.473023  9965 solver.cpp:404]     Test net output #1: loss = 2.49735 (* 1 = 2.49735 loss)
I0717 21:06:08.500000  9965 solver.cpp:228] Iteration 0, loss = 2.42257
I0717 21:06:08.612390  9965 solver.cpp:244]     Train net output #0: loss = 2.4 (* 1 = 2.4 loss)
I0717 21:06:08.612390  9965 solver.cpp:244]     Train net output #1: top-1 = 0.25
I0717 21:06:08.612417  9965 sgd_solver.cpp:106] Iteration 0, lr = 0.01
I0717 21:06:13.500000  9965 solver.cpp:228] Iteration 100, loss = 1.5e-05
I0717 21:06:13.612390  9965 solver.cpp:244]     Train net output #0: loss = 1.4e-05 (* 1 = 1.4e-05 loss)
I0717 21:06:13.612390  9965 solver.cpp:244]     Train net output #1: top-1 = 1
I0717 21:06:13.612417  9965 sgd_solver.cpp:106] Iteration 100, lr = 0.00992565
"""


@pytest.fixture
def read(tmp_path):
    def go(text, encoding="utf-8"):
        (tmp_path / "a.log").write_bytes(text.encode(encoding))
        return log_reader.read(tmp_path / "a.log")

    return go


def line(when, text, date="I0717 "):
    return f"{date}{when}.000000  9965 solver.cpp:228] {text}\n"


def losses(tables):
    return dict(zip(tables.train["iteration"].astype(int), tables.train["loss"], strict=True))


def test_a_log_holds_losses_rates_outputs_and_times(read):
    train, tests, counted = read(OLD)
    assert train["iteration"].tolist() == [0, 100]
    assert train["loss"].tolist() == [2.42257, 1.5e-05]  # the smoothed one, not the output of that name
    assert train["lr"].tolist() == [0.01, 0.00992565]
    assert train["top-1"].tolist() == [0.25, 1]
    assert train["seconds"].tolist() == pytest.approx([5, 10])  # since "Solving"
    assert tests["output"].tolist() == ["accuracy", "loss"]
    assert tests["value"].tolist() == [0.1296, 2.49735]
    assert tests["seconds"].tolist() == pytest.approx([0.000009] * 2, abs=1e-6)
    assert counted == {"loss"}


def test_both_forms_of_the_date_say_the_same(read):
    old, new = read(OLD), read(OLD.replace("I0717", "I20240717"))
    assert old.train.equals(new.train)
    assert old.tests.equals(new.tests)


@pytest.mark.parametrize(
    "text",
    [
        "Iteration 100 (12.5 iter/s, 8s/100 iters), loss = 0.25",
        "Iteration 100 (-2.32449e-30 iter/s, 0.231025s/100 iters), loss = 0.25",  # the first rate is garbage
        "Iteration 100 (7.6 iter/s, 13.2s/100 iter), 10.2/39.4ep, loss = 0.25",
        "[3] Iteration 100, loss = 0.25",
        "Iteration 100, loss = .25",
        "Iteration 100, loss = 2.5e-01",
    ],
)
def test_every_form_of_the_line_with_the_loss_is_read(read, text):
    assert losses(read(line("10:00:00", text))) == {100: 0.25}


def test_a_rate_ends_at_its_comma(read):
    assert read(line("10:00:00", "Iteration 5, lr = 0.01, m = 0.9, wd = 0.0005")).train["lr"].tolist() == [0.01]


@pytest.mark.parametrize("before", ["", "    ", "^C", "[0] ", "\x1b[0m"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_what_terminals_and_mpirun_put_before_is_passed_over(read, before, ending):
    text = "".join(before + one + ending for one in OLD.splitlines())
    assert read(text).train.equals(read(OLD).train)
    assert read(text).tests.equals(read(OLD).tests)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings_are_read(read, encoding):
    assert losses(read(OLD.replace("LeNet", "Café"), encoding)) == {0: 2.42257, 100: 1.5e-05}


def test_lines_without_a_prefix_have_no_time(read):
    train = read("Iteration 0, loss = 2.5\n    Train net output #0: acc = 0.5\nIteration 10, loss = 2\n").train
    assert train["loss"].tolist() == [2.5, 2]
    assert train["seconds"].isna().all()
    assert train["acc"].iloc[0] == 0.5


@pytest.mark.parametrize(
    ("shown", "value"),
    [
        ("nan", math.nan),
        ("-nan", math.nan),
        ("-nan(ind)", math.nan),
        ("1.#QNAN", math.nan),
        ("-1.#IND", math.nan),
        ("inf", math.inf),
        ("-inf", -math.inf),
        ("1.#INF", math.inf),
        ("-1.#INF", -math.inf),
        ("1e+30", 1e30),
    ],
)
def test_numbers_that_are_none_are_read_as_each_system_prints_them(read, shown, value):
    found = losses(read(line("10:00:00", f"Iteration 7, loss = {shown}")))[7]
    assert found == value or (math.isnan(found) and math.isnan(value))


def test_vectors_keep_all_their_elements(read):
    text = line("10:00:00", "Iteration 0, Testing net (#0)")
    text += "".join(line("10:00:01", f"    Test net output #{k}: per_class = 0.{k}") for k in (1, 2, 3))
    text += line("10:00:01", "    Test net output #4: loss: 50%-rate = 3 (* 0.5 = 1.5 loss)")
    _, tests, counted = read(text)
    assert dict(zip(tests["output"], tests["value"], strict=True)) == {
        "per_class[0]": 0.1,
        "per_class[1]": 0.2,
        "per_class[2]": 0.3,
        "loss: 50%-rate": 3,
    }
    assert counted == {"loss: 50%-rate"}


def test_several_test_nets_stay_apart(read):
    text = "".join(
        line("10:00:00", f"Iteration {i}, Testing net (#{net})")
        + line("10:00:00", f"    Test net output #0: acc = {i + net}")
        for i in (0, 10)
        for net in (0, 1)
    )
    tests = read(text).tests
    assert tests[["iteration", "net", "value"]].to_numpy().tolist() == [[0, 0, 0], [0, 1, 1], [10, 0, 10], [10, 1, 11]]


def test_the_scores_of_caffes_first_year_are_read(read):
    text = line("10:00:00", "Iteration 4, Testing net") + line("10:00:00", "Iteration 4, Testing net (#0)")
    tests = read(text + line("10:00:01", "Test score #0: 0.16") + line("10:00:01", "Test score #1: 2.5")).tests
    assert dict(zip(tests["output"], tests["value"], strict=True)) == {"score 0": 0.16, "score 1": 2.5}


# -- sessions and clocks -----------------------------------------------------------------------------------------------


def test_what_a_resumed_session_did_again_counts(read):
    text = line("10:00:00", "Solving LeNet")
    text += "".join(line(f"10:00:{10 * k:02d}", f"Iteration {100 * k}, loss = {k}") for k in (1, 2, 3))
    text += line("10:00:30", "Iteration 300, Testing net (#0)") + line("10:00:31", "    Test net output #0: acc = 0.3")
    text += line("15:00:00", "Solving LeNet")  # from a snapshot at 200, hours later
    text += "".join(line(f"15:00:{10 * k:02d}", f"Iteration {200 + 100 * k}, loss = {k + 70}") for k in (1, 2))
    train, tests, _ = read(text)
    assert dict(zip(train["iteration"], train["loss"], strict=True)) == {100: 1, 200: 2, 300: 71, 400: 72}
    assert train["seconds"].tolist() == [10, 20, 30, 40]
    assert tests.empty


def test_a_session_that_goes_on_where_the_last_one_stopped_keeps_everything(read):
    text = line("10:00:00", "Solving LeNet") + line("10:00:10", "Iteration 100, loss = 1")
    text += line("11:00:00", "Solving LeNet") + line("11:00:05", "Iteration 150, loss = 2")
    train = read(text).train
    assert train["iteration"].tolist() == [100, 150]
    assert train["seconds"].tolist() == [10, 15]


def test_a_resumed_log_without_its_beginning_is_understood(read):
    text = line("10:00:00", "Iteration 100, loss = 1") + line("10:00:10", "Iteration 200, loss = 2")
    train = read(text + line("12:00:00", "Iteration 150, loss = 3") + line("12:00:10", "Iteration 250, loss = 4")).train
    assert train["loss"].tolist() == [1, 3, 4]
    assert train["seconds"].tolist() == [0, 0, 10]


@pytest.mark.parametrize(
    ("dates", "days"),
    [
        (("I1231 ", "I0101 "), 1),
        (("I0228 ", "I0301 "), 1),
        (("I0228 ", "I0229 ", "I0301 "), 2),
        (("I20241231 ", "I20250101 "), 1),
        (("I20240228 ", "I20240301 "), 2),
        (("I0131 ", "I0201 "), 1),
    ],
)
def test_time_goes_on_over_months_and_years(read, dates, days):
    text = "".join(line("12:00:00", f"Iteration {i}, loss = 1", date) for i, date in enumerate(dates))
    assert read(text).train["seconds"].tolist()[-1] == days * 86400


def test_a_clock_that_is_put_back_does_not_take_time_back(read):
    stamps = ("02:59:50", "02:00:00", "02:00:20")
    text = "".join(line(when, f"Iteration {i}, loss = 1") for i, when in enumerate(stamps))
    assert read(text).train["seconds"].tolist() == [0, 0, 20]


def test_a_damaged_date_does_no_harm(read):
    text = line("10:00:00", "Iteration 0, loss = 1") + line("10:00:10", "Iteration 1, loss = 2", "I0799 ")
    assert read(text).train["seconds"].tolist() == [0, 0]


@pytest.mark.parametrize("content", ["", "hello\n", "Iteration: 1 forward-backward time: 12 ms.\n", "\0\xff" * 99])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(ValueError, match=r"a\.txt: not a log of a training: no line in it as 'Iteration 100, loss = "):
        log_reader.read(tmp_path / "a.txt")
