"""`parotid-seg listen`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parotid_seg.commands.shared import Quiet, extra, one_line_errors
from parotid_seg.terminal import print_error


def listen(
    port: Annotated[int, typer.Option("--port", metavar="N", help="TCP port to listen on.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for received slices, results and their states.")
    ],
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="AE[@ADDRESS]",
            help="AE title that may connect, from that address only; repeatable. Without one nobody may.",
        ),
    ] = None,
    send_to: Annotated[
        str | None,
        typer.Option(
            "--send-to",
            metavar="AE@HOST:PORT",
            help="Node that gets the results. Default: they are only kept in DIR/results.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address to listen on. DICOM neither checks who connects nor encrypts: see docs/listen.md.",
        ),
    ] = "127.0.0.1",
    ae_title: Annotated[str, typer.Option("--ae-title", metavar="AE", help="The node's own AE title.")] = "PAROTID-SEG",
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="Model file (.onnx) or engine. Default: the packaged CT model."),
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", help="auto, onnxruntime, openvino, tensorrt or tensorrt-rtx.")
    ] = "auto",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    flips: Annotated[bool, typer.Option("--tta", "--flips", help="See 'parotid-seg infer --help'.")] = False,
    clean_up: Annotated[bool, typer.Option("--clean-up/--no-clean-up", help="See 'parotid-seg infer --help'.")] = True,
    quiet_seconds: Annotated[
        float,
        typer.Option("--quiet-seconds", metavar="S", help="A series is complete once nothing more came for so long."),
    ] = 30.0,
    keep_received: Annotated[
        bool,
        typer.Option(
            "--keep-received", help="Keep received slices after the result is delivered. Default: remove them."
        ),
    ] = False,
    keep_failed_days: Annotated[
        float,
        typer.Option(
            "--keep-failed-days", metavar="N", help="How long slices of series that came to nothing are kept."
        ),
    ] = 7.0,
    max_associations: Annotated[
        int,
        typer.Option("--max-associations", metavar="N", help="Of one address at the same time; more are turned away."),
    ] = 10,
    max_object_mib: Annotated[
        int, typer.Option("--max-object-mib", metavar="N", help="Larger objects are refused.")
    ] = 1024,
    spare_mib: Annotated[
        int, typer.Option("--spare-mib", metavar="N", help="With less free space on the disk, objects are refused.")
    ] = 1024,
    silence_seconds: Annotated[
        float,
        typer.Option(
            "--silence-seconds", metavar="S", help="An association in which nothing comes for so long is ended."
        ),
    ] = 60.0,
    quiet: Quiet = False,
) -> None:
    """Be a DICOM node: take CT series by C-STORE, segment them, and send an RTSTRUCT of each back.

    What was received, done and sent is kept in DIR, so that a node that was stopped or killed goes on where it was.
    One series failing never stops it. Each event is a line on stderr, without names of patients. It runs until SIGTERM
    or Ctrl-C. Needs the extra: pip install 'parotid-seg[node]'.
    """
    with one_line_errors("what was received is kept"), extra("node"):
        from parotid_seg.export.engine import runnable
        from parotid_seg.models import DEFAULT_MODEL
        from parotid_seg.node.listen import listen as run
        from parotid_seg.node.options import ListenOptions, Peer
        from parotid_seg.node.segmenting import segment_with
        from parotid_seg.runtime.engines.load import load_backend, output_for

        def say(text: str) -> None:
            if not quiet:
                print_error(text)

        options = ListenOptions(
            port=port,
            out=out,
            host=host,
            ae_title=ae_title,
            allowed=tuple(allow or ()),
            send_to=None if send_to is None else Peer.parse(send_to),
            quiet_s=quiet_seconds,
            keep_received=keep_received,
            keep_failed_days=keep_failed_days,
            most_associations=max_associations,
            largest_object_mib=max_object_mib,
            spare_mib=spare_mib,
            silence_s=silence_seconds,
        )
        file = runnable(model or DEFAULT_MODEL, backend, report=say)
        loaded = load_backend(file, backend, device, output=output_for(file, flips, say), say=say)
        status = run(options, segment_with(loaded, flips=flips, clean_up=clean_up), say=say)
    raise typer.Exit(status)
