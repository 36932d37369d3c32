import contextlib
import errno
import itertools
import json
import os
import stat
import sys
import time

import pytest
import safetensors.torch
import torch

import charrnn.atomic
import charrnn.checkpoint
from charrnn.checkpoint import find_checkpoint, holds_run, load_checkpoint, save_checkpoint
from charrnn.config import RENAMED, RENAMED_BACKENDS, RunConfig
from charrnn.data.tokenizer import CharTokenizer
from charrnn.errors import CheckpointError
from charrnn.models.recurrent import CharGRU, CharLSTM
from charrnn.training.run import Run

from .conftest import killed_at_each_touch

TOKENIZER = CharTokenizer("\nabcé😀")
FILES = {"model.safetensors", "config.json", "tokenizer.json", "training_state.json"}


def make_model(seed=0):
    torch.manual_seed(seed)
    return CharLSTM(6, 4, 2, dropout=0.25, embedding_dim=3)


def save(path, model=None, **options):
    save_checkpoint(path, model or make_model(), TOKENIZER, RunConfig(), {"step": 3, "val_loss": 1.5}, **options)
    return path


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_round_trip(tmp_path):
    save(tmp_path / "deep" / "model")
    loaded = load_checkpoint(tmp_path / "deep" / "model")
    assert same(loaded.model, make_model())
    assert loaded.tokenizer == TOKENIZER
    assert loaded.config.model == make_model().config
    assert loaded.training_state == {"step": 3, "val_loss": 1.5}
    assert not loaded.model.training
    assert loaded == loaded
    assert loaded != load_checkpoint(tmp_path / "deep" / "model")


def test_it_is_a_directory_of_safetensors_and_json_alone(tmp_path):
    save(tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == FILES
    size = sum(path.stat().st_size for path in (tmp_path / "m").iterdir())
    tensor = torch.arange(6.0).view(2, 3).t()  # which has not the order of its memory
    save(tmp_path / "m", tensors={"optimizer.x": tensor})
    loaded = load_checkpoint(tmp_path / "m", resume=True)
    assert torch.equal(loaded.tensors["optimizer.x"], tensor)
    assert loaded.bytes == size
    assert {path.name for path in (tmp_path / "m").iterdir()} == FILES | {"optimizer.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]  # nothing is left beside it
    json.loads((tmp_path / "m" / "config.json").read_text())


@pytest.mark.skipif(os.name != "posix", reason="only POSIX systems can sync a directory")
def test_the_files_are_on_disk_before_they_take_their_place_and_so_is_the_place_after(tmp_path, monkeypatch):
    path, synced, sync = tmp_path / "m", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append((os.fstat(fd).st_ino, path.exists())) or sync(fd))
    save(path, tensors={"optimizer.x": torch.ones(2)})
    assert set(synced[:-2]) == {(entry.stat().st_ino, False) for entry in path.iterdir()}
    assert synced[-2:] == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_half_precision_on_disk_is_read_as_fp32(tmp_path):
    save(tmp_path / "half", dtype=torch.float16)
    save(tmp_path / "full")
    loaded = load_checkpoint(tmp_path / "half").model
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.state_dict(), make_model().state_dict(), rtol=1e-3, atol=1e-4)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.8 * sizes[1]


def test_a_runs_directory_means_its_best(tmp_path):
    save(tmp_path / "run" / "last", make_model(1))
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run" / "last"
    save(tmp_path / "run" / "best", make_model(2))
    assert same(load_checkpoint(tmp_path / "run").model, make_model(2))
    assert find_checkpoint(tmp_path / "run", prefer="last") == tmp_path / "run" / "last"
    assert holds_run(tmp_path / "run")
    assert not holds_run(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the crash is played in a forked process")
def test_a_kill_at_any_touch_of_the_disk_leaves_the_old_or_the_new_one(tmp_path):
    path = save(tmp_path / "m", make_model(1))
    ended = []
    for code in killed_at_each_touch(lambda: save(path, make_model(2))):
        ended.append(code)
        loaded = load_checkpoint(path).model
        assert same(loaded, make_model(1)) or same(loaded, make_model(2))
        if code and same(loaded, make_model(2)):
            save(path, make_model(1))  # what the crash left behind is no hindrance
    assert ended[-1] == 0
    assert len(ended) > 10
    assert same(load_checkpoint(path).model, make_model(2))
    for left in tmp_path.glob(".*"):
        os.utime(left, (0, 0))  # long ago: surely no save that is still going on
    save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_a_crash_between_the_renames_is_mended(tmp_path):
    path = save(tmp_path / "run" / "last", make_model(1))
    os.rename(path, path.with_name(".last.old"))
    assert same(load_checkpoint(tmp_path / "run").model, make_model(1))
    assert same(load_checkpoint(path).model, make_model(1))
    assert find_checkpoint(tmp_path / "run", prefer="last").name == ".last.old"
    save(path, make_model(2))
    assert same(load_checkpoint(path).model, make_model(2))
    assert not path.with_name(".last.old").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each moment is played in a forked process")
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_never_mixed(tmp_path):
    def load_while_replaced_at(touch):
        """The number of the checkpoint, and whether there was such a touch of the disk."""
        touches, saves = itertools.count(1), []

        def replace(event, _):
            if event.startswith(("open", "os.")) and not saves and next(touches) == touch:
                saves.append(touch)
                save_number(tmp_path / "m", 2)

        sys.addaudithook(replace)
        return number_of(load_checkpoint(tmp_path / "m", resume=True)), bool(saves)

    save_number(tmp_path / "m", 1)
    load_checkpoint(tmp_path / "m", resume=True)  # imports what it needs
    seen = []
    for touch in itertools.count(1):
        number, touched = in_a_fork(load_while_replaced_at, touch)
        seen.append(number)
        if not touched:
            break
        save_number(tmp_path / "m", 1)
    assert set(seen) == {1, 2}
    assert len(seen) > 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each moment is played in a forked process")
def test_two_saves_at_once_are_never_mixed(tmp_path):
    def save_while_another_saves_at(touch):
        """Whether there was such a touch of the disk."""
        touches, saves = itertools.count(1), []

        def interfere(event, _):
            if event.startswith(("open", "os.")) and not saves and next(touches) == touch:
                saves.append(touch)
                save_number(tmp_path / "m", 2)

        sys.addaudithook(interfere)
        with contextlib.suppress(OSError):  # one may fail, and says so
            save_number(tmp_path / "m", 3)
        return bool(saves)

    save_number(tmp_path / "m", 1)
    for touch in itertools.count(1):
        touched = in_a_fork(save_while_another_saves_at, touch)
        assert number_of(load_checkpoint(tmp_path / "m", resume=True)) in (2, 3)
        assert [path.name for path in tmp_path.iterdir()] == ["m"]
        if not touched:
            break
    assert touch > 10


def save_number(path, number):
    tensors = {"optimizer.x": torch.tensor([float(number)])}
    save_checkpoint(path, make_model(number), TOKENIZER, RunConfig(), {"step": number}, tensors)


def number_of(loaded):
    """The number that `save_number` got; 0 where the files come from several of them."""
    number = loaded.training_state["step"]
    return number if same(loaded.model, make_model(number)) and loaded.tensors["optimizer.x"].item() == number else 0


def in_a_fork(function, *arguments):
    """What a function returns in a forked process."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            os.write(writer, json.dumps(function(*arguments)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.wait()
    with open(reader, "rb") as pipe:
        return json.loads(pipe.read())


def test_leftovers_of_a_killed_save_are_removed_after_an_hour(tmp_path):
    for name, age in ((".m.1.new", 7200), (".m.2.new", 600), (".other.3.new", 7200)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    save(tmp_path / "m")
    assert {path.name for path in tmp_path.iterdir()} == {"m", ".m.2.new", ".other.3.new"}


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = save(tmp_path / "m", make_model(1))

    def full(path, blocks):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(charrnn.checkpoint, "write_new", full)
        with pytest.raises(OSError, match="No space left"):
            save(path, make_model(2))
    assert same(load_checkpoint(path).model, make_model(1))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_symbolic_link_keeps_pointing_to_its_checkpoint(tmp_path):
    path = save(tmp_path / "far" / "m", make_model(1))
    link = tmp_path / "link"
    link.symlink_to(path, target_is_directory=True)
    for seed in (2, 3):
        save(link, make_model(seed))
        assert link.is_symlink()
        assert same(load_checkpoint(link).model, make_model(seed))
        assert same(load_checkpoint(path).model, make_model(seed))
    os.rename(path, path.with_name(".m.old"))  # a crash between the renames
    assert same(load_checkpoint(link).model, make_model(3))
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_file_system_that_cannot_sync_directories_is_no_hindrance(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_directories(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_directories)
    path = save(tmp_path / "m", make_model(1))
    assert same(load_checkpoint(save(path, make_model(2))).model, make_model(2))
    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse_directories(os.open(tmp_path, os.O_RDONLY)))
    with pytest.raises(OSError, match="Invalid argument; an old checkpoint is untouched"):
        save(path, make_model(3))


def test_a_rename_that_a_scanner_refuses_for_a_moment_is_tried_again(tmp_path, monkeypatch):
    replace, refused = os.replace, []

    def scanned(source, target):
        if len(refused) < 3:
            refused.append(source)
            raise PermissionError(13, "Access is denied")
        replace(source, target)

    path = save(tmp_path / "m", make_model(1))
    monkeypatch.setattr(os, "replace", scanned)
    assert same(load_checkpoint(save(path, make_model(2))).model, make_model(2))
    assert len(refused) == 3
    monkeypatch.setattr(charrnn.atomic, "ATTEMPTS", 2)
    refused.clear()
    with pytest.raises(PermissionError):
        save(path, make_model(3))
    assert same(load_checkpoint(path).model, make_model(2))


@pytest.mark.parametrize("file", sorted(FILES))
@pytest.mark.parametrize("damage", ["cut", "gone", "noise", "empty"])
def test_damage_is_named(tmp_path, file, damage):
    path = save(tmp_path / "m") / file
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "gone":
            path.unlink()
        case "noise":
            path.write_bytes(b"\x80\xff" * 40)
        case "empty":
            path.write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "m")
    assert (file if damage != "gone" or file != "config.json" else str(tmp_path / "m")) in str(caught.value)


def test_another_architectures_weights_are_named(tmp_path):
    save(tmp_path / "m")
    weights = CharGRU(6, 4, 2, embedding_dim=3).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "m" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"expected layers.0.weight_ih_l0 of shape \(16, 3\), got \(12, 3\)"):
        load_checkpoint(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "expected format 1, got 99, written by a newer charrnn; update this one"),
        ({"format": None}, "expected format 1, got None$"),
        ({"config": {"model": {"hidden_size": 0}}}, "model.hidden_size .* got 0"),
        ({"config": {"model": {"hiden_size": 3}}}, "unknown key 'model.hiden_size'"),
    ],
)
def test_a_config_that_is_wrong_is_named(tmp_path, change, message):
    path = save(tmp_path / "m") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_pointer_of_git_lfs_is_told_from_a_damaged_file(tmp_path, name):
    path = save(tmp_path / "m") / name
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
    with pytest.raises(CheckpointError, match=f"{name}: .*, got a Git LFS pointer; run: git lfs pull"):
        load_checkpoint(tmp_path / "m")


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere ': expected a checkpoint or the directory of a run, got no"):
        load_checkpoint(tmp_path / "nowhere ")
    with pytest.raises(CheckpointError, match="got a folder without one"):
        load_checkpoint(tmp_path)
    for name in ("a", "b"):
        save(tmp_path / name)
    with pytest.raises(CheckpointError, match="got a folder that holds a, b; name one"):
        load_checkpoint(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_checkpoint_from_a_gpu_opens_on_a_cpu(tmp_path):
    save(tmp_path / "m", make_model().cuda())
    assert same(load_checkpoint(tmp_path / "m").model, make_model())


@pytest.mark.parametrize("options", [{"tie_weights": True}, {"layer_norm": True, "residual": True, "num_layers": 2}])
def test_options_of_the_model_come_back(tmp_path, options):
    tokenizer = CharTokenizer("abc")
    model = CharLSTM(3, 4, **options).eval()
    save_checkpoint(tmp_path / "model", model, tokenizer, RunConfig())
    again = load_checkpoint(tmp_path / "model").model
    tokens = torch.tensor([[0, 1, 2]])
    assert torch.equal(again(tokens)[0], model(tokens)[0])
    assert again.config == model.config
    assert (again.head.weight is again.embedding.weight) == model.config.tie_weights


def test_a_checkpoint_with_the_names_of_an_earlier_version_is_read(tiny, tmp_path):
    run = Run.start(tiny.override({"micro_batches": 2, "backend": "reference", "save_top_k": 2}), tmp_path / "run")
    run.fit()
    for name in ("config.json", "training_state.json"):
        path = tmp_path / "run" / "last" / name
        text = path.read_text(encoding="utf-8")
        for old, new in RENAMED.items():
            text = text.replace(f'"{new}":', f'"{old}":')
        for old, new in RENAMED_BACKENDS.items():
            text = text.replace(f'"backend": "{new}"', f'"backend": "{old}"')
        path.write_text(text, encoding="utf-8")
    assert '"accumulation": 2' in (tmp_path / "run" / "last" / "config.json").read_text()
    assert '"readable"' in text
    again = load_checkpoint(tmp_path / "run", resume=True)
    assert again.config == run.config
    assert again.training_state["progress"]["backend"] == "reference"
