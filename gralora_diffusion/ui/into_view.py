"""Results that a button leads to are scrolled into view where they are not, as above a long form."""

import json

SHOW_HEAD = """<script>
const pressedAt = {};  // {id of what was clicked: how far the page was scrolled then}
document.addEventListener('click', event => {
    const id = event.target.closest?.('[id]')?.id;
    if (id) pressedAt[id] = scrollY;
}, true);
window.graloraShow = (target, button) => {  // who has scrolled away from the button stays there
    const inSight = element => {
        const {top, bottom} = element.getBoundingClientRect();
        return (top + bottom) / 2 > 0 && (top + bottom) / 2 < innerHeight;
    };
    let tries = 40;  // in two seconds; what has just become visible is not there at once
    const show = () => {
        const element = document.getElementById(target);
        if (!element?.offsetParent) return tries-- && setTimeout(show, 50);
        const from = button && document.getElementById(button);
        const left = from && !inSight(from) && scrollY !== pressedAt[button];  // else, new content moved it
        if (inSight(element) || left) return;
        const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
        const block = element.offsetHeight > innerHeight ? 'start' : 'center';
        element.scrollIntoView({block, behavior: still ? 'auto' : 'smooth'});
    };
    show();
};
</script>"""


def showing(target: str, button: str | None = None) -> str:
    """JavaScript of an event without outputs; target and button: their elem_id."""
    return f"() => {{ graloraShow({json.dumps(target)}, {json.dumps(button)}); return []; }}"
