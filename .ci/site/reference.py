"""The reference: a page per module, read from its text, with the comments of parameters as a table.

fastcore's docments knows no comment of an unannotated return, of the first of two parameters on
one line, or of a parent's field, and it imports what it documents."""
import ast
import inspect
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WINGS = {"": "What a user imports", "rivals": "The rivals", "study": "The study", "bench": "Speed",
         "drawn": "The drawn people", "base": "The cellar"}


def plain(text):
    "Markdown that shows a text as it is, but for its code in backticks."
    pieces = re.split(r"(`[^`]+`)", text)
    pieces[::2] = [re.sub(r"([\\*_<>$\[\]])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


def prose(docstring):
    "Paragraphs; indented lines become a block of code."
    out, code = [], False
    for line in inspect.cleandoc(docstring or "").splitlines():
        if line.startswith(" ") != code:
            out += ["```text"] if not code else ["```"]
            code = not code
        out.append(line if code else plain(line))
    return "\n".join(out + ["```"]*code)


def comments_of(text):
    "Line -> its comment; a line with nothing but a comment goes on with the one above."
    found, begun = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT: continue
        line, words = token.start[0], token.string.lstrip("# ")
        goes_on = token.line.lstrip().startswith("#") and line - 1 in begun
        begun[line] = begun[line - 1] if goes_on else line
        found[begun[line]] = " ".join([found[begun[line]], words] if goes_on else [words])
    return found


def parameters(node, comments):
    "(name, default, comment) of each parameter, and of what comes back."
    spec, rows = node.args, []
    args = [*spec.posonlyargs, *spec.args]
    defaults = [None]*(len(args) - len(spec.defaults)) + spec.defaults
    pairs = [*zip(args, defaults), *zip(spec.kwonlyargs, spec.kw_defaults)]
    pairs += [(rest, None) for rest in (spec.vararg, spec.kwarg) if rest]
    for arg, default in sorted(pairs, key=lambda pair: (pair[0].lineno, pair[0].col_offset)):
        if arg.arg != "self": rows.append((arg.arg, default, comments.get(arg.lineno, "")))
    last = max([arg.lineno for arg, _ in pairs], default=node.lineno)
    closing = [comments[n] for n in range(last + 1, node.body[0].lineno) if n in comments]
    return rows + [("returns", None, comment) for comment in closing[:1]]


def table(rows):
    "Markdown of (name, default, comment); nothing if there is no comment."
    if not any(comment for *_, comment in rows): return ""
    lines = ["| | |", "| --- | --- |"]
    for name, default, comment in rows:
        text = f"`{name}`" if name != "returns" else f"*{name}*"
        if default is not None: text += f" = `{ast.unparse(default)}`"
        cells = (cell.replace("|", r"\|") for cell in (text, plain(comment)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def paragraphs(pieces): return "\n\n".join(filter(None, pieces))


def directive(kind, signature, body, fence="````"):
    return f"{fence}{{py:{kind}}} {signature}\n\n{body}\n{fence}\n"


def arguments(node):
    "What a call is given: the signature without self."
    return re.sub(r"^self(: \w+)?(, )?", "", ast.unparse(node.args))


def function(node, comments, kind="function"):
    "One function or method."
    pieces = prose(ast.get_docstring(node)), table(parameters(node, comments))
    return directive(kind, f"{node.name}({arguments(node)})", paragraphs(pieces))


def is_patch(node):
    "Whether a function is a method that stands outside its class."
    return any(ast.unparse(d) == "patch" for d in getattr(node, "decorator_list", ()))


def fields(node, comments):
    "The rows of a dataclass."
    lines = [line for line in node.body if isinstance(line, ast.AnnAssign)]
    return [(line.target.id, line.value, comments.get(line.lineno, "")) for line in lines]


def class_of(node, tree, comments):
    "One class: its fields or what it is made of, and its methods with a docstring."
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    methods += [n for n in tree.body
                if is_patch(n) and ast.unparse(n.args.args[0].annotation) == node.name]
    made = next((m for m in methods if m.name == "__init__"), None)
    bases = ", ".join(f"`{ast.unparse(base)}`" for base in node.bases)
    rows = parameters(made, comments) if made else fields(node, comments)
    pieces = [prose(ast.get_docstring(node)), f"A kind of {bases}." if bases else "", table(rows)]
    for method in methods:
        if method.name.startswith("_") or not ast.get_docstring(method): continue
        pieces.append(function(method, comments, "method"))
    signature = f"{node.name}({arguments(made)})" if made else node.name
    return directive("class", signature, paragraphs(pieces), "`````")


def constant(node, names):
    "The values that a line gives names to."
    value = ast.unparse(node.value)
    value = f"`{value}`" if len(value) <= 80 and "`" not in value else ""
    targets = [n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)]
    return "".join(directive("data", name, value if len(targets) == 1 else "")
                   for name in targets if name in names)


def page(name, path):
    "The page of a module."
    text = path.read_text(encoding="utf-8")
    tree, comments = ast.parse(text), comments_of(text)
    exported = next(n.value for n in tree.body if isinstance(n, ast.Assign)
                    and n.targets[0].id == "__all__")
    names = ast.literal_eval(exported)
    chapter = re.search(r"nbs/(\w+)\.ipynb", text)[1]
    out = [f"# {name}", prose(ast.get_docstring(tree)),
           f"Built and tested in the chapter [](../{chapter}.ipynb).",
           f"```{{py:module}} {name}\n```"]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in names:
            out.append(class_of(node, tree, comments))
        if isinstance(node, ast.FunctionDef) and node.name in names and not is_patch(node):
            out.append(function(node, comments))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Name, ast.Tuple)):
            out.append(constant(node, names))
    return paragraphs(out) + "\n"


def overview(modules):
    "The first page: every module and its line, by wing."
    out = ["# Reference", "Every public name, with its signature. The chapters say why."]
    for wing, title in WINGS.items():
        own = [name for name in modules if name.split(".")[1:-1] == [wing]*bool(wing)]
        out += [f"## {title}", "| | |\n| --- | --- |"]
        for name in own:
            line = ast.get_docstring(ast.parse(modules[name].read_text(encoding="utf-8")))
            out[-1] += f"\n| [{name}]({name}.md) | {plain(' '.join(line.split()))} |"
        listed = "\n".join(own)
        out.append(f"```{{toctree}}\n:hidden:\n\n{listed}\n```")
    return paragraphs(out) + "\n"


def write_reference(folder):
    "The overview and a page per module, into `folder`."
    folder.mkdir()
    modules = {}
    for path in sorted((ROOT/"gcutmix").rglob("*.py")):
        if path.name.startswith("_"): continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        modules[name] = path
        (folder/f"{name}.md").write_text(page(name, path), encoding="utf-8")
    (folder/"index.md").write_text(overview(modules), encoding="utf-8")
