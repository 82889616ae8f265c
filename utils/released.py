"""Released checkpoints: what they are, to our format, and back."""

import json

from utils.checkpoint import files, ours
from utils.checkpoint.layouts import RELEASES
from utils.checkpoint.network import build_network
from utils.checkpoint.released import convert, export, inspect, state_of
from utils.command import Parser, RunError, command
from utils.files import output_path
from utils.training.flags import add_bits_flags


def _print_inspected(found):
    networks = found["networks"]
    kinds = {"ours": "a checkpoint of ours", "packed": "a packed network", "released": "a released checkpoint"}
    print(f"{found['path']}: {kinds[found['kind']]}")
    for network in networks:
        layout_name = f" (layout {network['layout']})" if network["layout"] else ""
        print(f"  {'or ' if network is not networks[0] else ''}{network['title']}{layout_name}")
    unused = f", {len(found['unused'])} of them unused ({', '.join(found['unused'])})" if found["unused"] else ""
    print(f"  {found['tensors']} tensors, all matched{unused}; {found['dtype']}; {found['classes']} classes")
    if len(networks) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in found["choices"])
        taken = f", else it is taken for {found['taken']}" if found["taken"] else ""
        print(f"  one layout, several networks: say {flags}{taken}")


def build_parser():
    parser = Parser(prog="utils.released", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    sub = commands.add_parser("inspect", help="what is this file?")
    sub.add_argument("path")
    sub.add_argument("--json", action="store_true", help="one JSON object as the last line")
    sub = commands.add_parser("convert", help="a released file to our format")
    sub.add_argument("path")
    sub.add_argument("out")
    add_bits_flags(sub)
    sub.add_argument("--force", action="store_true", help="replace OUT if it exists")
    sub = commands.add_parser("export", help="a checkpoint of ours to a released layout, for the released code")
    sub.add_argument("path")
    sub.add_argument("out")
    sub.add_argument("--layout", required=True, metavar="NAME", help="one of " + ", ".join(RELEASES))
    sub.add_argument("--data-parallel", action="store_true", help="prefix keys with 'module.', as ImageNet code loads")
    sub.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.command == "inspect":
        found = inspect(args.path)
        _print_inspected(found)
        if args.json:
            print(json.dumps(found))
        return
    out = output_path(args.out, args.force, [args.path])
    payload = files.read(args.path)
    if args.command == "convert":
        if ours.is_ours(payload):
            raise RunError(f"{args.path} is a checkpoint of ours already")
        payload = convert(
            state_of(payload, args.path), args.path, args.weight_bits, args.activation_bits, args.structure
        )
        build_network(payload["network"], payload["model"], args.path)
        ours.save(out, payload)
        print(f"{out}: {RELEASES[payload['released']['name']].full_title}, {len(payload['model'])} tensors")
        return
    if not ours.is_ours(payload):
        raise RunError(f"{args.path} is not a checkpoint of ours: convert it first")
    state = export(payload, args.path, args.layout)
    prefix = "module." if args.data_parallel else ""
    # The released code runs on PyTorch 0.4 to 1.3, which reads the old file format alone.
    files.write(out, {"state_dict": {prefix + key: value for key, value in state.items()}}, legacy=True)
    print(f"{out}: {RELEASES[args.layout].full_title}, {len(state)} tensors in the layout {args.layout}")


if __name__ == "__main__":
    main()
