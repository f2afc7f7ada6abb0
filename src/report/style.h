// The page's style sheet. Colours are named once, for light and for dark.
#pragma once

namespace baton {

inline constexpr const char* kStyle = R"css(
:root {
  color-scheme: light dark;
  --bg: #f7f7f5; --card: #ffffff; --ink: #1c2024; --muted: #646b73; --line: #dfe1e4; --grid: #eceef0;
  --full: #3c4654; --select: #c2570c; --scan: #0f766e; --reuse: #3f7fd6; --window: #a3a9b1;
  --plan: #3f7fd6; --dense: #9aa2ac; --heat: #1d5fbf; --accent: #c2570c;
  --good: #2e8b57; --fair: #c98a13; --bad: #c0392b; --cell-ink: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #14171a; --card: #1c2024; --ink: #e8eaed; --muted: #9aa3ad; --line: #343a41; --grid: #272c32;
    --full: #8b97a8; --select: #e07b2e; --scan: #2aa79b; --reuse: #5b97e8; --window: #565d66;
    --plan: #5b97e8; --dense: #6b747f; --heat: #6aa9ff; --accent: #f0954a;
    --good: #3da66c; --fair: #c98a13; --bad: #d9584a; --cell-ink: #ffffff;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.55 system-ui, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 28px 60px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 2px; }
p { margin: 0 0 12px; max-width: 92ch; }
.lead, .note, figcaption { color: var(--muted); }
.lead { font-size: 16px; margin-bottom: 22px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 20px 24px 18px; margin: 18px 0; }
#summary { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px;
  background: none; border: 0; padding: 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; }
.card b { display: block; font-size: 31px; line-height: 1.2; font-weight: 650; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.card span { display: block; font-weight: 600; }
.card small { display: block; color: var(--muted); font-size: 13px; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 10px 26px; align-items: start; }
.row.front { grid-template-columns: 3fr 2fr; }
@media (max-width: 900px) { .row, .row.front { grid-template-columns: 1fr; } }
figure { margin: 8px 0 0; overflow-x: auto; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif; }
svg text { fill: var(--muted); }
svg .axis-name { fill: var(--muted); font-style: italic; }
svg .panel, svg .strong { fill: var(--ink); font-weight: 600; font-size: 13px; }
svg .small { font-size: 11px; }
svg .small, svg .strong { paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; }
svg .cell { fill: var(--cell-ink); font-weight: 650; font-size: 13px; pointer-events: none; }
svg .cell-small { fill: var(--cell-ink); font-size: 10px; pointer-events: none; }
svg .axis { stroke: var(--muted); stroke-width: 1; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .diagonal, svg .target { stroke: var(--muted); stroke-dasharray: 4 4; stroke-width: 1.2; }
svg .target { stroke: var(--accent); }
svg .arc { fill: none; stroke: var(--reuse); stroke-width: 1.5; opacity: 0.75; }
svg .arc:hover { stroke: var(--accent); stroke-width: 2.5; opacity: 1; }
svg .arrow { fill: var(--reuse); }
svg .trough { fill: var(--grid); }
svg .heat { fill: var(--heat); }
svg .chosen-edge { fill: none; stroke: var(--accent); stroke-width: 1.8; }
svg .front-line { fill: none; stroke: var(--plan); stroke-width: 1.6; }
svg .dot { fill: var(--dense); fill-opacity: 0.75; }
svg .front-dot { fill: var(--plan); stroke: var(--card); stroke-width: 1.5; }
svg .weak { fill: var(--card); stroke: var(--plan); }
svg .star { fill: var(--accent); stroke: var(--card); stroke-width: 1.2; }
.c-full { fill: var(--full); background: var(--full); } .c-select { fill: var(--select); background: var(--select); }
.c-scan { fill: var(--scan); background: var(--scan); } .c-reuse { fill: var(--reuse); background: var(--reuse); }
.c-window { fill: var(--window); background: var(--window); } .c-route { fill: var(--full); background: var(--full); }
.c-dense { fill: var(--dense); background: var(--dense); } .c-plan { fill: var(--plan); background: var(--plan); }
svg .good { fill: var(--good); } svg .fair { fill: var(--fair); } svg .bad { fill: var(--bad); }
.run-0 { color: var(--reuse); } .run-1 { color: var(--select); } .run-2 { color: var(--scan); }
.run-3 { color: var(--bad); } .run-4 { color: var(--full); } .run-5 { color: var(--fair); }
.run-6 { color: var(--good); } .run-7 { color: var(--window); }
svg .curve { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
svg .point { fill: currentColor; }
.legend i[class^="run-"] { background: currentColor; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 6px 0 0; padding: 0; list-style: none;
  color: var(--muted); font-size: 13px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px; vertical-align: -1px; }
.legend b { color: var(--ink); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: right; font-weight: 600; color: var(--muted); border-bottom: 1px solid var(--line); padding: 5px 10px; }
td { text-align: right; border-bottom: 1px solid var(--grid); padding: 5px 10px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.facts td, .facts th { text-align: left; vertical-align: top; }
.facts th { width: 150px; border-bottom: 1px solid var(--grid); padding-left: 0; }
code { font: 12.5px ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
)css";

}  // namespace baton
