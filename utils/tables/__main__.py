"""Print a table of the paper as Markdown, the paper's figures beside those of our finished runs."""

from utils.command import Parser, UsageError, command
from utils.tables import table6
from utils.tables.accuracy import accuracy_table
from utils.tables.costs import costs_table
from utils.tables.leaderboard import leaderboard
from utils.tables.lengths import lengths_table
from utils.tables.paper import TABLES
from utils.tables.plots import curves_table, output_paths, plot_curves, plot_lambda
from utils.tables.results import collect, of_data
from utils.tables.runs import masked_table, runs_table

HELP = (
    "the paper's table; runs: every run found; masked: what IRes masked in each; curves: accuracy over epochs; "
    "lengths: accuracy over the number of epochs; costs: accuracy beside OPs and size; leaderboard: every method with "
    "and without CIRec"
)
LISTS = {
    "runs": runs_table, "masked": masked_table, "curves": curves_table, "lengths": lengths_table, "costs": costs_table,
}  # fmt: skip
PLOTS = {"fig7": plot_lambda, "curves": plot_curves}


def build_parser():
    parser = Parser(prog="utils.tables", description=__doc__)
    parser.add_argument("table", choices=[*TABLES, "6", *LISTS, "leaderboard"], help=HELP)
    parser.add_argument("--runs", nargs="+", metavar="DIR", help="folders with finished runs; default: results")
    parser.add_argument("--data", metavar="NAME", help="only runs on this data set, or this folder of images, by name")
    parser.add_argument("--commands", action="store_true", help="below a table of the paper: what was run")
    parser.add_argument("--brief", action="store_true", help="of a table of the paper only what was run")
    parser.add_argument("--plot", metavar="PNG", help="fig7, curves: also draw it, points in a .csv beside it")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.plot:
        if args.table not in PLOTS:
            raise UsageError(f"--plot goes with {' or '.join(PLOTS)}")
        paths = output_paths(args.plot)
    if args.table not in TABLES and (args.commands or args.brief):
        raise UsageError(f"--commands and --brief go with a table of accuracies: {', '.join(TABLES)}")
    if args.table == "6":
        if args.runs or args.data:
            raise UsageError("table 6 counts operations: --runs and --data do not go with it")
        print(table6.markdown())
        return
    results = collect(args.runs or ["results"])
    if args.table in TABLES:
        print(accuracy_table(args.table, results, args.data, args.commands, args.brief))
    else:
        results = results if args.data is None else of_data(results, args.data)
        print(leaderboard(results) if args.table == "leaderboard" else LISTS[args.table](results))
    if args.plot:
        PLOTS[args.table](results if args.data is None else of_data(results, args.data), paths)
        print(f"\nplot: {args.plot}")


if __name__ == "__main__":
    main()
