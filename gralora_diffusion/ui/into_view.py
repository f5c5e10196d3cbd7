"""Scrolls the result of a button into view where it is off-screen, as above or below a long form."""

import json

SHOW_HEAD = """<script>
const pressedAt = {};  // {id of what was clicked: when}
let scrolledAt = 0, engagedAt = 0;  // of the user's last input; late content scrolls the page, too
const onInput = (kinds, note) => kinds.forEach(
    kind => document.addEventListener(kind, note, {capture: true, passive: true}));
onInput(['wheel', 'touchmove'], () => { scrolledAt = performance.now(); });
onInput(['keydown', 'click', 'mousedown'], event => { if (event.isTrusted) engagedAt = performance.now(); });
onInput(['click'], event => {
    const id = event.target.closest?.('[id]')?.id;
    if (id) pressedAt[id] = performance.now();
});
window.graloraShow = (target, button) => {  // whoever has turned to something else is left alone
    const inSight = element => {
        const {top, bottom} = element.getBoundingClientRect();
        const middle = Math.min((top + bottom) / 2, top + innerHeight / 2);
        return middle > 0 && middle < innerHeight;
    };
    const since = pressedAt[button] ?? performance.now();
    let end = performance.now() + 60000, shown = false;
    const show = () => {
        const element = document.getElementById(target), from = document.getElementById(button);
        const away = scrolledAt > since && (shown || !(from && inSight(from)));
        if (away || engagedAt > since) return;
        const there = element?.offsetParent;  // its component may still be loading
        if (there && !inSight(element)) {
            const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
            const block = element.offsetHeight > innerHeight ? 'start' : 'center';
            element.scrollIntoView({block, behavior: still ? 'auto' : 'smooth'});
            shown = true;
        }
        if (there) end = Math.min(end, performance.now() + 3000);  // content above it may still load
        if (performance.now() < end) setTimeout(show, there ? 500 : 50);
    };
    show();
};
</script>"""


def showing(target: str, button: str | None = None) -> str:
    """JavaScript for an event without outputs; target and button are elem_ids."""
    return f"() => {{ graloraShow({json.dumps(target)}, {json.dumps(button)}); return []; }}"
