"""The one door: `bustseg VERB ...`. Each verb calls one function; bad input ends in one line and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from bustseg import __version__
from bustseg.command_line import call
from bustseg.deploy.exported import BACKENDS, FORMATS, PRECISIONS
from bustseg.errors import UserError
from bustseg.progress import console, error_console
from bustseg.trust import taken_out, trusting

if TYPE_CHECKING:
    from bustseg.data.sources import Source

TRAINING_VERBS = ("fit", "validate", "test")


def _phantom(args: argparse.Namespace) -> int:
    from bustseg.data.phantom import write_phantoms

    dest = write_phantoms(Path(args.dest), n=args.n, seed=args.seed)
    console.print(f"{args.n} phantoms in {dest}; train on them with --data.root {dest}")
    return 0


def _source(args: argparse.Namespace) -> tuple[Path, Source]:
    """Reader and folder of ``ROOT`` and ``--source``, which is written as ``data.source`` in a config."""
    from jsonargparse import ArgumentError, ArgumentParser

    from bustseg.data.sources import Source

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=Source)
    try:
        source = parser.instantiate_classes(parser.parse_args(["--source", args.source])).source
    except (ArgumentError, ValueError) as error:
        raise UserError(
            f"unknown source {args.source}: use {', '.join(sorted(cls.__name__ for cls in _subclasses(Source)))}, "
            "or class_path and init_args as in a config"
        ) from error
    root = args.root or source.default_root()
    if root is None:
        raise UserError("no data folder: name it, or set BUSI_ROOT")
    return Path(root).expanduser(), source


def _subclasses(cls: type) -> list[type]:
    direct: list[type] = cls.__subclasses__()
    return direct + [one for sub in direct for one in _subclasses(sub)]


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None


def _data_check(args: argparse.Namespace) -> int:
    from bustseg.data.commands import check_command

    root, source = _source(args)
    return check_command(root, source, _path(args.json), _path(args.report), args.threshold)


def _data_split(args: argparse.Namespace) -> int:
    from bustseg.data.commands import split_command

    root, source = _source(args)
    return split_command(
        root,
        source,
        scheme=args.scheme,
        seed=args.seed,
        out=_path(args.out),
        check=_path(args.check),
        folds=args.folds,
        of=args.kfold_of,
        curated_list=_path(args.curated_list),
        threshold=args.threshold,
    )


def _data_fetch(args: argparse.Namespace) -> int:
    from bustseg.data.fetch import URL, fetch_command

    return fetch_command(Path(args.dest).expanduser(), args.url or URL, _path(args.archive), args.sha256)


def _explain(args: argparse.Namespace) -> int:
    from bustseg.explain_images import explain_images

    out = Path(args.out) if args.out else None
    inputs = [Path(path) for path in args.input]
    return explain_images(
        inputs, args.model, out, args.method, args.layer, args.size, args.tolerance, only_list=args.list_layers
    )


def _export(args: argparse.Namespace) -> int:
    from bustseg.deploy.export import Limits, export_command

    limits = Limits(args.max_difference, args.max_dice_drop / 100)
    return export_command(
        args.model,
        args.format,
        args.precision,
        Path(args.out).expanduser(),
        root=_path(args.data_root),
        images=_path(args.images),
        limits=limits,
        overwrite=args.overwrite,
        threshold=args.threshold,
        min_area=args.min_area,
    )


def _ensemble(args: argparse.Namespace) -> int:
    from bustseg.ensemble import ensemble_command

    out = Path(args.out).expanduser()
    return ensemble_command(args.model, out, overwrite=args.overwrite, image_size=args.image_size)


def _bench(args: argparse.Namespace) -> int:
    from bustseg.deploy.bench import bench_command

    return bench_command(
        args.model,
        sizes=args.size,
        batches=args.batch,
        precisions=args.precisions,
        backends=args.backends,
        threads=args.threads,
        rounds=args.rounds,
        root=_path(args.data_root),
        images=_path(args.images),
        json_file=_path(args.json),
        markdown=_path(args.markdown),
    )


def _predict(args: argparse.Namespace) -> int:
    from bustseg.deploy.clips import ClipOptions, predict_all
    from bustseg.deploy.predict import Options

    options = Options(
        threshold=args.threshold,
        batch_size=args.batch_size,
        workers=args.workers,
        overlays=args.overlays,
        probabilities=args.probabilities,
        dicom_seg=args.dicom_seg,
        overwrite=args.overwrite,
        recursive=args.recursive,
    )
    clips = ClipOptions(args.smooth, args.clip_format)
    return predict_all(args.input, args.model, Path(args.out).expanduser(), options, clips)


def _serve(args: argparse.Namespace) -> int:
    from bustseg.serve.command import serve

    return serve(
        args.model,
        args.host,
        args.port,
        _path(args.corrections),
        args.threshold,
        tuple(args.allowed_hosts),
        max_bytes=args.max_mb * 1024**2,
        max_requests=args.max_requests,
        batch_size=args.batch_size,
    )


def _live(args: argparse.Namespace) -> int:
    from bustseg.live.command import live

    return live(
        args.device,
        args.model,
        args.host,
        args.port,
        args.smooth,
        args.threshold,
        args.repeat,
        args.page,
        args.pace,
        args.seconds,
    )


def _node(args: argparse.Namespace) -> int:
    from bustseg.node.command import node

    return node(
        args.port,
        args.ae,
        args.send_to,
        args.host,
        _path(args.spool),
        args.model,
        args.threshold,
        tuple(args.allow),
        args.capture,
        args.max_waiting,
        args.seconds,
    )


def _ui(args: argparse.Namespace) -> int:
    from bustseg.runs.store import Store, open_store, tracking_uri

    uri = tracking_uri(args.uri)
    if uri.startswith("http"):
        console.print(f"the MLflow UI of this project is at {Store(uri).shown}")
        return 0
    store = open_store(uri)
    # without the last part the first page is about chat bots
    page = f"http://{args.host}:{args.port}/#/experiments?workflowType=machine_learning"
    console.print(f"MLflow UI: {page} (store {store.shown}; Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "server", "--host", args.host, "--port", str(args.port)]
    # not as an argument, which other users of this machine see: the URI may hold a password
    os.execve(sys.executable, command, {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri})


def _compare(args: argparse.Namespace) -> int:
    from bustseg.compare_report import report

    groups = None if args.groups is None else Path(args.groups)
    out = None if args.out is None else Path(args.out)
    report(args.run, args.experiment, args.metric, args.convention, args.baseline, groups, out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bustseg",
        description="Breast-tumour segmentation in ultrasound: train, test, compare, explain, deploy.",
        epilog="example: bustseg fit --config configs/quickstart.yaml",
    )
    parser.add_argument("--version", action="version", version=f"bustseg {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(
        parent: argparse._SubParsersAction,
        name: str,
        function: Callable[[argparse.Namespace], int] | None,
        text: str,
        example: str,
    ) -> argparse.ArgumentParser:
        sub = parent.add_parser(name, help=text, description=text, epilog=f"example: {example}")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        # taken out of the arguments by `main`; here only for the help
        sub.add_argument(
            "--trust", metavar="PACKAGE", help="a package whose classes a MODEL may name (or BUSTSEG_TRUST)"
        )
        if function is not None:
            sub.set_defaults(function=function)
        return sub

    # the training verbs are parsed by LightningCLI; here they only appear in the help
    for name, text in (
        ("fit", "train a network from a config"),
        ("validate", "score a checkpoint on the validation images"),
        ("test", "score a checkpoint on the test images"),
        ("summary", "parameters, GFLOPs and layers of a config's network; trains nothing"),
        ("cv", "cross-validate: fit and test over folds, with mean and spread"),
        ("sweep", "search hyper-parameters: a fit per point, by grid or any Optuna sampler"),
        ("reproduce", "fit and test the rows of the paper's tables, beside its figures"),
    ):
        verb(verbs, name, None, text, f"bustseg {name} --config configs/paper/model_01.yaml")

    data = verbs.add_parser("data", help="make, check and split data", description="make, check and split data")
    data_verbs = data.add_subparsers(dest="data_verb", metavar="VERB", required=True)
    phantom = verb(
        data_verbs,
        "phantom",
        _phantom,
        "write synthetic phantoms in BUSI's layout",
        "bustseg data phantom phantoms --n 160",
    )
    phantom.add_argument("dest", help="folder to create")
    phantom.add_argument("--n", type=int, default=160, help="number of images (default 160)")
    phantom.add_argument("--seed", type=int, default=0, help="the same seed gives the same images (default 0)")

    fetch = verb(
        data_verbs,
        "fetch",
        _data_fetch,
        "download BUSI from its authors (206 MB; goes on where it stopped), or unpack an archive of it",
        "bustseg data fetch data",
    )
    fetch.add_argument("dest", help="folder for Dataset_BUSI_with_GT")
    origin = fetch.add_mutually_exclusive_group()
    origin.add_argument("--url", help="another place of the archive")
    origin.add_argument("--archive", metavar="ZIP", help="an archive at hand, such as Kaggle's")
    fetch.add_argument(
        "--sha256", metavar="HEX", help="the archive's checksum; `none` for no check (default: the authors' with a URL)"
    )
    check = verb(
        data_verbs,
        "check",
        _data_check,
        "find broken files, wrong masks, duplicates and burned-in marks; exit code 1 when training would be wrong",
        "bustseg data check Dataset_BUSI_with_GT --report report.html",
    )
    split = verb(
        data_verbs,
        "split",
        _data_split,
        "write a split, or measure how much of one leaks",
        "bustseg data split Dataset_BUSI_with_GT --scheme grouped --seed 0 --out split.csv",
    )
    for sub in (check, split):
        sub.add_argument("root", nargs="?", help="data folder (default: the source's own, such as BUSI_ROOT)")
        sub.add_argument(
            "--source",
            default="BUSI",
            help="layout: BUSI, BUSBRA, BUSUCLM, BrEaST, Folders, DICOMFolder, or class_path and init_args as JSON",
        )
        sub.add_argument(
            "--threshold", type=float, default=0.40, help="score from which a pair counts as duplicate (default 0.40)"
        )
    check.add_argument("--json", metavar="FILE", help="write everything that was found")
    check.add_argument("--report", metavar="FILE.html", help="write a report with the pairs side by side")
    split.add_argument(
        "--scheme",
        default="grouped",
        choices=("paper", "lesion", "grouped", "curated", "kfold"),
        help="paper: 624/78/78; lesion: without normals, 8:1:1; grouped: as paper, with duplicates and patients kept "
        "together (default); curated: only listed images; kfold: cross-validation",
    )
    split.add_argument("--seed", type=int, default=0, help="the same seed gives the same split (default 0)")
    split.add_argument("--out", metavar="FILE.csv", help="file to write, for --data.split")
    split.add_argument("--check", metavar="FILE.csv", help="measure the leakage of this split instead; exit 1 if any")
    split.add_argument("--folds", type=int, default=5, help="folds of kfold (default 5)")
    split.add_argument("--kfold_of", default="grouped", help="scheme that kfold divides (default grouped)")
    split.add_argument("--curated_list", metavar="FILE.csv", help="images that curated keeps (class;id, or image)")

    compare = verb(
        verbs,
        "compare",
        _compare,
        "runs side by side on the same test images: intervals, paired tests, per class and lesion size, pictures",
        "bustseg compare --experiment baselines --out comparison",
    )
    compare.add_argument(
        "run", nargs="*", metavar="RUN", help="MLflow run id, runs:/RUN_ID, a folder with tables/test.csv, or a CSV"
    )
    compare.add_argument("--experiment", help="compare all tested runs of this MLflow experiment")
    compare.add_argument("--baseline", metavar="RUN", help="run that the others are compared with (default: the first)")
    compare.add_argument("--metric", action="append", default=[], help="dice, iou, hd95 ...; may be repeated")
    compare.add_argument(
        "--convention", action="append", default=[], help="paper, lesion, empty_one or pooled; may be repeated"
    )
    compare.add_argument("--groups", metavar="CSV", help="columns image,group: what is resampled together")
    compare.add_argument("--out", metavar="DIR", help="folder for compare.csv, compare.html and comparison.png")

    explain = verb(
        verbs,
        "explain",
        _explain,
        "show where a trained network looks: Grad-CAM of any images",
        "bustseg explain images/ --model latest --out explained",
    )
    explain.add_argument("input", nargs="*", metavar="INPUT", help="image files, or folders of them")
    explain.add_argument("--model", required=True, help="checkpoint, MLflow run id, runs:/RUN_ID or latest")
    explain.add_argument("--out", help="folder for panels, heat maps and explain.csv")
    explain.add_argument("--method", default="GradCAM", help="GradCAM (default), GradCAMPlusPlus, LayerCAM, ...")
    explain.add_argument("--layer", help="layer of the network (default: its last decoder block)")
    explain.add_argument("--list-layers", action="store_true", help="print the layers that can be explained, and stop")
    explain.add_argument("--size", type=int, nargs="+", help="input size of the network (default: as trained)")
    explain.add_argument("--tolerance", type=float, default=0, help="pixels by which a hit may miss (default 0)")

    export = verb(
        verbs,
        "export",
        _export,
        "write a trained network for ONNX Runtime or OpenVINO, and check that it answers as it did",
        "bustseg export latest --format openvino --precision int8 --out exported",
    )
    export.add_argument("model", metavar="MODEL", help="checkpoint, MLflow run id, runs:/RUN_ID or latest")
    export.add_argument("--format", default="openvino", choices=FORMATS, help="default openvino")
    export.add_argument("--precision", default="fp32", choices=PRECISIONS, help="default fp32; bf16 for openvino only")
    export.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    export.add_argument("--overwrite", action="store_true", help="replace the exported model that is there")
    export.add_argument(
        "--max_difference", type=float, help="largest difference of a probability (default: fp32 0.001, bf16 0.05)"
    )
    export.add_argument(
        "--max_dice_drop", type=float, default=0.5, help="Dice on validation images that may be lost, in points (0.5)"
    )

    export.add_argument(
        "--threshold", type=float, help="probability that makes a lesion (default: as trained; see bustseg validate)"
    )
    export.add_argument(
        "--min_area", type=float, help="components below this share of the image are removed (default: as trained)"
    )

    ensemble = verb(
        verbs,
        "ensemble",
        _ensemble,
        "join trained networks into one checkpoint that answers with the mean of their logits",
        "bustseg ensemble RUN_ID RUN_ID --out ensemble.ckpt",
    )
    ensemble.add_argument("model", nargs="+", metavar="MODEL", help="checkpoint, MLflow run id or runs:/RUN_ID")
    ensemble.add_argument("--out", required=True, metavar="FILE", help="checkpoint to write")
    ensemble.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    ensemble.add_argument(
        "--image_size", type=int, metavar="PX", help="side of the images that all see (default: the members' own)"
    )

    bench = verb(
        verbs,
        "bench",
        _bench,
        "latency, throughput, memory and accuracy of networks in torch, ONNX Runtime and OpenVINO, in one run",
        "bustseg bench latest configs/paper/model_01.yaml --markdown speed.md",
    )
    bench.add_argument(
        "model", nargs="+", metavar="MODEL", help="as for export, or an exported folder, or a config (untrained)"
    )
    bench.add_argument("--size", type=int, nargs="+", help="sides of the network's input (default: as trained)")
    bench.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images at once (default 1 8)")
    bench.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS, help="default all")
    bench.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS, help="default all")
    bench.add_argument("--threads", type=int, help="default: the machine's cores")
    bench.add_argument("--rounds", type=int, default=20, help="interleaved rounds of five images (default 20)")
    bench.add_argument("--json", metavar="FILE", help="write all figures")
    bench.add_argument("--markdown", metavar="FILE", help="write the tables")
    for sub in (export, bench):
        sub.add_argument("--data.root", dest="data_root", metavar="ROOT", help="the run's data, if they have moved")
        sub.add_argument("--images", metavar="DIR", help="images to check with instead (masks beside them, as in BUSI)")

    predict = verb(
        verbs,
        "predict",
        _predict,
        "outline lesions in images of any number and size: masks, overlays and a table",
        "bustseg predict scans/ --out predictions",
    )
    predict.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        help="PNG, JPEG, TIFF, BMP or DICOM files, folders of them, quoted globs; videos (mp4, avi, mov, mkv, webm)",
    )
    predict.add_argument(
        "--model", help="checkpoint, MLflow run id, runs:/RUN_ID, latest, or an exported folder (default: in the box)"
    )
    predict.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    predict.add_argument("--threshold", type=float, help="probability above which a pixel is lesion (default: model's)")
    predict.add_argument("--batch_size", type=int, default=8, help="images per step of the network (default 8)")
    predict.add_argument("--workers", type=int, help="threads that read, and as many that write (default: by cores)")
    predict.add_argument("--no-overlays", dest="overlays", action="store_false", help="write no overlays")
    predict.add_argument(
        "--probabilities", action="store_true", help="write probabilities too (16 bit PNG, 65535 is 1)"
    )
    predict.add_argument(
        "--dicom_seg", action="store_true", help="write DICOM SEG of DICOM files; they carry the patient's identity"
    )
    predict.add_argument(
        "--smooth", type=float, default=0.0, metavar="SECONDS", help="of a video: average over so long (default 0)"
    )
    predict.add_argument(
        "--clip_format", default="mp4", help="of the outlined video: mp4 (default), webm (plays in browsers) or avi"
    )
    again = predict.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", dest="overwrite", action="store_false", default=False, help="go on with what DIR holds (default)"
    )
    again.add_argument("--overwrite", action="store_true", help="drop the predictions that DIR holds and begin anew")
    predict.add_argument(
        "--recursive",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look into folders of folders (default: yes)",
    )

    serve = verb(
        verbs,
        "serve",
        _serve,
        "a page to look at outlines and correct them, and an HTTP interface for programs",
        "bustseg serve --corrections corrections",
    )
    serve.add_argument("--model", help="as for predict (default: the model in the box)")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1; others want BUSTSEG_TOKEN)"
    )
    serve.add_argument("--port", type=int, default=8080, help="port (default 8080; 0 takes a free one)")
    serve.add_argument("--corrections", metavar="DIR", help="folder to save corrections in (default: none are saved)")
    serve.add_argument("--threshold", type=float, help="probability above which a pixel is lesion (default: model's)")
    serve.add_argument(
        "--allowed_hosts", nargs="+", default=[], metavar="NAME", help="names by which clients may call the server"
    )
    serve.add_argument("--max_mb", type=int, default=256, help="largest request in MiB (default 256)")
    serve.add_argument("--max_requests", type=int, default=64, help="requests at once; more get 429 (default 64)")
    serve.add_argument("--batch_size", type=int, default=8, help="images per step of the network (default 8)")

    live = verb(
        verbs,
        "live",
        _live,
        "a camera or a video with the outline on it, as it comes: frames that are too many are dropped and counted",
        "bustseg live --device 0",
    )
    live.add_argument("--device", default="0", help="number of a camera (default 0), or a video file")
    live.add_argument("--model", help="as for predict (default: the model in the box)")
    live.add_argument("--host", default="127.0.0.1", help="address of the page (default 127.0.0.1)")
    live.add_argument("--port", type=int, default=8081, help="port of the page (default 8081; 0 takes a free one)")
    live.add_argument("--smooth", type=float, default=0.0, metavar="SECONDS", help="average over so long (default 0)")
    live.add_argument("--threshold", type=float, help="probability above which a pixel is lesion (default: model's)")
    live.add_argument("--repeat", action="store_true", help="begin a file anew at its end")
    live.add_argument("--no-page", dest="page", action="store_false", help="only a line a second, no page")
    live.add_argument("--no-pace", dest="pace", action="store_false", help="play a file as fast as it can be read")
    live.add_argument("--seconds", type=float, help="end after so many (default: at the end, or with Ctrl-C)")

    node = verb(
        verbs,
        "node",
        _node,
        "a DICOM node: takes ultrasound images, and sends DICOM SEG and secondary captures on",
        "bustseg node --send_to PACS@pacs.example:104",
    )
    node.add_argument("--port", type=int, default=11112, help="port to listen on (default 11112; 0 takes a free one)")
    node.add_argument("--ae", default="BUSTSEG", metavar="AE", help="its AE title (default BUSTSEG)")
    node.add_argument("--send_to", metavar="AE@HOST:PORT", help="where results go (default: they stay in the queue)")
    node.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1; 0.0.0.0 for all)")
    node.add_argument("--spool", metavar="DIR", help="folder of the queue (default: in the user's state folder)")
    node.add_argument("--model", help="as for predict (default: the model in the box)")
    node.add_argument("--threshold", type=float, help="probability above which a pixel is lesion (default: model's)")
    node.add_argument("--allow", nargs="+", default=[], metavar="AE", help="AE titles that may send (default: all)")
    node.add_argument("--no-capture", dest="capture", action="store_false", help="send no secondary captures")
    node.add_argument("--max_waiting", type=int, default=10_000, help="images that may wait (default 10000)")
    node.add_argument("--seconds", type=float, help="end after so many (default: with Ctrl-C)")

    ui = verb(verbs, "ui", _ui, "open the MLflow UI on the project's store", "bustseg ui --port 5000")
    ui.add_argument("--uri", help="MLflow store (default: MLFLOW_TRACKING_URI or sqlite:///mlruns/mlflow.db)")
    ui.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    ui.add_argument("--port", type=int, default=5000, help="port (default 5000)")
    return parser


def run(args: Sequence[str]) -> int:
    """Run one verb and return its exit code; errors come out as exceptions."""
    if args and args[0] in (*TRAINING_VERBS, "summary", "cv", "sweep", "reproduce"):
        # imported only here: torch and Lightning take seconds that `--help` and `ui` need not wait for
        module = import_module(f"bustseg.commands.{args[0]}")
        return call(getattr(module, args[0]), args[1:], f"bustseg {args[0]}")
    namespace = _parser().parse_args(list(args))
    return namespace.function(namespace)


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of the command line; ``args`` as in ``sys.argv[1:]``. Returns the exit code."""
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not debug:
        warnings.simplefilter("ignore")
    try:
        packages, arguments = taken_out(arguments)
        with trusting(packages):
            return run(arguments)
    except UserError as error:
        return _fail(str(error), 2, debug)
    except OSError as error:
        import errno

        if error.errno == errno.ENOSPC:
            return _fail("the disk is full: free some space; finished epochs are kept in the run's last.ckpt", 2, debug)
        return _fail(f"{type(error).__name__}: {error}", 1, debug)
    except KeyboardInterrupt:
        return _fail("stopped by the user", 130, debug)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        text = " ".join(str(error).split())
        return _fail(f"{type(error).__name__}: {text} (run again with --debug for the traceback)", 1, debug)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        error_console.print_exception()
    error_console.print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    return code


if __name__ == "__main__":
    sys.exit(main())
